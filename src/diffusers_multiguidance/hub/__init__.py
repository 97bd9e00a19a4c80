"""Publishing on the Hub: whole or not at all, and errors in one sentence."""
