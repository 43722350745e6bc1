"""Newton methods: directions and globalisation. They import operators, not waves."""
