"""What the settings of several stages say together, by what it is about."""
