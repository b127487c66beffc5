"""What the commands share: everything about the repository and how it is made."""
