"""vistune: LLaVA, the Large Language and Vision Assistant, as a complete system.

Importing the package is instant: torch is loaded by the rooms that compute, when they are used.
"""

__version__ = "0.1.0"
