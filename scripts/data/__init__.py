"""The embedded default data set (see README.md) and the program that builds it."""
