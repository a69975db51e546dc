"""TPUs without a TPU: topologies, programs as shapes, what the compiler made of them."""
