"""Conv, Gemm and MatMul seen alike: the algebra that techniques share."""
