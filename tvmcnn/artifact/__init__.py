"""The artifact: the library file, its manifest, its lockfile, and the package around it."""
