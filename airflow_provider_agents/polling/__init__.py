"""One poll for every run that waits on a connection. Never imports Airflow."""
