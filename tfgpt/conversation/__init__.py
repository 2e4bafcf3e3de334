"""The chat in the terminal: conversation, commands and display."""
