"""YOGO, the one-stage detector that counts malaria parasites in real time, in JAX."""
