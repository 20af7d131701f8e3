"""The page *Browse > Agents*. Read-only; loaded where Airflow's pages are served, at the first request."""
