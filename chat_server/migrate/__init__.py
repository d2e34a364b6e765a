"""python run.py migrate: copy data from other stores, or from the Go server. The running server never imports this."""
