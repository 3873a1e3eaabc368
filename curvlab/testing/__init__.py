"""The published contract, for tests of core and plugins: exact cases, dense truths, reports of closeness."""
