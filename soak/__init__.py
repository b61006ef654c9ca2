"""Load for as long as one likes: ``python3 noxfile.py soak``."""
