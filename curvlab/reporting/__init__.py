"""What a run tells, and to whom: its folder, the terminal, nobody.  Reads run folders, too; never trains."""
