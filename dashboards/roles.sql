-- Who may do what in a PostgreSQL database that many workers share.
--
-- Run it as the owner of the database, after `mqasearch db upgrade` and again after each later one:
--
--     psql "$OWNER_URL" -f dashboards/roles.sql
--
-- Then give people and machines a login of their own:
--
--     CREATE ROLE worker_1 LOGIN PASSWORD '…' IN ROLE mqasearch_worker;
--     CREATE ROLE viewer_1 LOGIN PASSWORD '…' IN ROLE mqasearch_dashboard;
--
-- The owner creates studies (`mqasearch create`) and upgrades the schema. A worker can do neither:
-- it runs trials, adds scores, and can change or delete nobody's score, nor what a study is: its
-- model, its tasks, its budget. A dashboard reads.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mqasearch_worker') THEN
        CREATE ROLE mqasearch_worker NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mqasearch_dashboard') THEN
        CREATE ROLE mqasearch_dashboard NOLOGIN;
    END IF;
END
$$;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO mqasearch_worker, mqasearch_dashboard;

GRANT SELECT ON ALL TABLES IN SCHEMA public TO mqasearch_worker, mqasearch_dashboard;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO mqasearch_dashboard;

-- Trials: a worker adds them and writes their state, never deletes them.
GRANT INSERT, UPDATE ON
    trials,
    trial_params,
    trial_values,
    trial_intermediate_values,
    trial_user_attributes,
    trial_system_attributes,
    study_user_attributes,
    study_system_attributes
TO mqasearch_worker;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO mqasearch_worker;

-- What a study is, its owner has written: a worker that runs it may not make it another one.
CREATE OR REPLACE FUNCTION mqasearch_keep_study() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE')
    THEN
        RAISE insufficient_privilege USING MESSAGE = 'only the owner may change a study';
    END IF;
    RETURN NEW;
END
$$;
CREATE OR REPLACE TRIGGER mqasearch_make_study
    BEFORE INSERT ON study_user_attributes FOR EACH ROW
    WHEN (NEW.key IN ('mqasearch:study', 'mqasearch:tolerance'))
    EXECUTE FUNCTION mqasearch_keep_study();
CREATE OR REPLACE TRIGGER mqasearch_keep_study
    BEFORE UPDATE ON study_user_attributes FOR EACH ROW
    WHEN ('mqasearch:study' IN (OLD.key, NEW.key) OR 'mqasearch:tolerance' IN (OLD.key, NEW.key))
    EXECUTE FUNCTION mqasearch_keep_study();

-- A new trial locks its study's row, which PostgreSQL allows to those who may update a column.
GRANT UPDATE (study_id) ON studies TO mqasearch_worker;

-- The queue: a worker adds masks and writes what they came to, and changes or deletes none.
GRANT INSERT, UPDATE (
    state, worker, lease_until, deaths, out_of_memory, value, given_up, fault, facts, trial_id, recorded
) ON mqasearch_task TO mqasearch_worker;

-- Scores are only ever added; claims and the list of workers come and go.
GRANT INSERT ON mqasearch_score TO mqasearch_worker;
GRANT INSERT, UPDATE, DELETE ON mqasearch_claim, mqasearch_worker TO mqasearch_worker;
