"""Users and messages: what a store must do, and the stores that do it."""
