"""Other libraries over evsync's stores."""
