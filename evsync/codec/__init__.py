"""How events become bytes and bytes become events."""
