"""Models as other people publish them: read without executing anything, and written as they read them."""
