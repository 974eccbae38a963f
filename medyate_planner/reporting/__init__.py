"""Numbers first, then their rendering: views are plain data, text turns them into tables."""
