CREATE TABLE tasks (
            id              integer primary key autoincrement,
            status          varchar(20) not null default 'New' check (status in ('New', 'In Progress', 'Completed', 'Failed')),
            created_at      real not null default ((julianday('now') - 2440587.5) * 86400.0),
            updated_at      real not null default ((julianday('now') - 2440587.5) * 86400.0),
            payload         text check (payload is null or json_valid(payload)),
            result          text check (result is null or json_valid(result)),
            error           text,
            priority        int not null default 0,
            run_at          real,
            attempt         int not null default 0,
            uncounted       int not null default 0,
            max_attempts    int check (max_attempts > 0),
            timeout         real check (timeout > 0 and timeout < 1e99),
            lease_until     real,
            canceled        int not null default 0,
            progress        real check (progress between 0 and 1),
            idempotency_key text);
CREATE INDEX tasks_claim       on tasks (priority desc, id) where status = 'New' and run_at is null;
CREATE INDEX tasks_promote     on tasks (run_at)            where status = 'New' and run_at is not null;
CREATE INDEX tasks_list_status on tasks (status, id);
CREATE INDEX tasks_delete_old  on tasks (updated_at)        where status in ('Completed', 'Failed');
CREATE UNIQUE INDEX tasks_create      on tasks (idempotency_key)   where idempotency_key is not null;
