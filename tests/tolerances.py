"""Every tolerance of the tests, in one place: relative and float64 unless said."""

#: Values that pass through a scale and back: a multiplication and a division.
ROUNDING = 1e-15
#: Hessian products against an independent oracle.
PRODUCT = 1e-12
#: |H − Hᵀ| relative to the largest entry.
SYMMETRY = 1e-12
#: Gradients against an independent oracle.
GRADIENT = 1e-13
#: Products by central differences of gradients.
FINITE_DIFFERENCE = 1e-7
#: Newton steps, eigenvalues: a product's rounding times a moderate condition number.
SOLVE = 1e-9
#: Products and gradients of float32 models against float64.
FLOAT32 = 1e-4
#: How far a Taylor slope may be from its whole number, absolute.
SLOPE = 0.1
#: Memory that 200 products may add, bytes; one leaked vector a product adds ten times it.
MEMORY_GROWTH = 60e6
#: Trust-region steps against a dense solve.
TRUST_REGION_STEP = 1e-8
#: Minima of badly scaled functions against the six digits that were published.
PUBLISHED_MINIMUM = 1e-4
#: Models of the same few steps on one and on several ranks: other rounding in each sum.
SAME_INVERSION = 1e-10
#: Probability with which a test of coverage may fail by chance: hits of 200 seeds are
#: compared with this quantile of the binomial distribution.
BY_CHANCE = 1e-6
