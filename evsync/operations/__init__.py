"""What operators ask of a service: verify, explain, rebuild, reset; check, restore and trim what it stores."""
