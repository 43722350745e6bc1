"""Newton methods: directions and globalisation. They know operators, never waves."""
