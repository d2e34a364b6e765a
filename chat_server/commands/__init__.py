"""What whoever runs a server does besides running it, also while it runs: see to its users, back it up."""
