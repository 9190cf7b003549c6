"""Images and their captions: where they come from, how they are checked, and how they are described."""
