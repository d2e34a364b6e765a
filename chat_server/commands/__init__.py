"""The commands `user`, `backup`, `verify` and `restore`. The running server never imports them."""
