-- A login for the workers and one for the dashboard, with passwords from the environment; after
-- roles.sql, as the owner of the database. It may be run again: passwords are set anew.
--
--     WORKER_PASSWORD=… DASHBOARD_PASSWORD=… psql "$OWNER_URL" -f dashboards/logins.sql

\getenv worker_password WORKER_PASSWORD
\getenv dashboard_password DASHBOARD_PASSWORD

SELECT format('CREATE ROLE %I LOGIN IN ROLE %I', login, role)
FROM (VALUES ('worker', 'mqasearch_worker'), ('dashboard', 'mqasearch_dashboard')) AS wanted (login, role)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = login)
\gexec

ALTER ROLE worker PASSWORD :'worker_password';
ALTER ROLE dashboard PASSWORD :'dashboard_password';
