"""What is minimised: objectives, any torch function, and weighted sums."""
