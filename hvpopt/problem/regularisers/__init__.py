"""Ready-made regularisers: objectives of the model alone, for sums with misfits."""
