"""From any images to an extreme set: what is kept, by which opinion, and the card that says so."""
