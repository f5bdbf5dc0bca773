"""What stands between nats-py and the rest: connections, pulls, direct gets, and what a server's refusals mean."""
