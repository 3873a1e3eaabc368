"""What a run reports, and where: to its folder, to the terminal, or nowhere.  Reads run folders, too."""
