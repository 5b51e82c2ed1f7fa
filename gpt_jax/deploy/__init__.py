"""How does it get out: other formats, both ways."""
