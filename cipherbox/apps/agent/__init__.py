"""The agent: sends what is put into a folder, receives into another, and explains both."""
