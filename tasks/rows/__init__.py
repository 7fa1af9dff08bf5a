"""One file for each task, named like it, with its row as TASK; `tasks.table` collects them."""
