"""What people read: tables in the terminal, report.json and report.md."""
