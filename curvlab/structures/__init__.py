"""The reference pair of structure families; the others live in plugins."""
