CREATE TABLE tasks (
            id              integer primary key autoincrement,
            status          varchar(20) not null default 'New' check (status in ('New', 'In Progress', 'Completed', 'Failed')),
            created_at      real not null default ((julianday('now') - 2440587.5) * 86400.0),
            updated_at      real not null default ((julianday('now') - 2440587.5) * 86400.0),
            size            int generated always as     -- before what it measures, or SQLite would read that to find it
                (coalesce(length(cast(payload as blob)), 0) + coalesce(length(cast(result as blob)), 0)) stored,
            payload         text check (payload is null or typeof(payload) = 'text' and json_valid(payload)),
            result          text check (result is null or typeof(result) = 'text' and json_valid(result)),
            error           text check (typeof(error) <> 'blob' and length(cast(error as blob)) <= 1048576),
            priority        int not null default 0
                check (typeof(priority) = 'integer' and priority between -32768 and 32767),
            run_at          real,
            attempt         int not null default 0 check (typeof(attempt) = 'integer' and attempt <= 2147483647),
            uncounted       int not null default 0
                check (typeof(uncounted) = 'integer' and uncounted between 0 and attempt),
            max_attempts    int check (typeof(max_attempts) <> 'real' and max_attempts between 1 and 2147483647),
            timeout         real check (timeout > 0 and timeout < 1e99),
            lease_until     real,
            canceled        int not null default 0 check (canceled in (0, 1)),
            progress        real check (progress between 0 and 1),
            idempotency_key text
                check (typeof(idempotency_key) <> 'blob' and length(cast(idempotency_key as blob)) <= 2000),
            fingerprint     text check (typeof(fingerprint) <> 'blob'),
            ready_at        real,
            worker          text check (typeof(worker) <> 'blob'),
            alone           int not null default 0 check (alone in (0, 1)),
            -- What plain SQL may write: times from the year 1 to 9999, ids that a number of JSON holds exactly, and
            -- no more than can be read.
            check (created_at between -62135596800 and 253402300799.999
                   and updated_at between -62135596800 and 253402300799.999
                   and coalesce(run_at, 0) between -62135596800 and 253402300799.999
                   and coalesce(lease_until, 0) between -62135596800 and 253402300799.999
                   and coalesce(ready_at, 0) between -62135596800 and 253402300799.999),
            check (id between 1 and 9007199254740991),
            check (size <= case status when 'Completed' then 67108864 else 33554432 end));
CREATE INDEX tasks_claim       on tasks (priority desc, id) where status = 'New' and run_at is null;
CREATE INDEX tasks_promote     on tasks (run_at)            where status = 'New' and run_at is not null;
CREATE INDEX tasks_list_status on tasks (status, id);
CREATE INDEX tasks_delete_old  on tasks (updated_at)        where status in ('Completed', 'Failed');
CREATE UNIQUE INDEX tasks_create      on tasks (idempotency_key)   where idempotency_key is not null;
