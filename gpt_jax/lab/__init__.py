"""What will it cost, and does it hold? Questions about runs, as commands."""
