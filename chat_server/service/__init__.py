"""What the product does, without a word of HTTP or of a database."""
