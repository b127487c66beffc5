"""What the commands share: everything about the Parquet repository and how it is made."""
