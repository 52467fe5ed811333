"""What git leaves in the place of large files."""
