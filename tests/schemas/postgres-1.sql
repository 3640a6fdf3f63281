-- Task Manager's one table, for PostgreSQL 12 or newer. A task is one row, and the row is the truth.
--
-- This file may be run at any time, by PostgreSQL's init, by psql, or by the application at its start
-- (which skips it when the comment in the last line is already on the table). It makes an empty
-- database ready, and brings a table of the four documented columns up to date in place, rows and all.

create table if not exists tasks (
    id         bigserial   primary key,
    status     varchar(20) not null default 'New',
    created_at timestamp   not null default (now() at time zone 'utc'),   -- all times are UTC
    updated_at timestamp   not null default (now() at time zone 'utc')    -- when the status last changed
);

-- What real work needs. A row inserted with none of it is a task like any other.
alter table tasks
    add column if not exists payload         json,
    add column if not exists result          json,
    add column if not exists error           text,                                 -- of the last attempt
    add column if not exists priority        smallint not null default 0,          -- higher is sooner
    add column if not exists run_at          timestamp,                            -- null: ready now
    add column if not exists attempt         int      not null default 0,          -- the fencing token: grows with each claim, never reused
    add column if not exists uncounted       int      not null default 0,          -- attempts that do not count: released, or before a retry by hand
    add column if not exists max_attempts    int      check (max_attempts > 0),    -- null: the worker's default
    add column if not exists timeout         double precision check (timeout > 0 and timeout < 1e99), -- seconds; null: the worker's default
    add column if not exists lease_until     timestamp,                            -- null: nobody holds it
    add column if not exists canceled        boolean  not null default false,      -- cancellation was asked for
    add column if not exists progress        real     check (progress between 0 and 1),
    add column if not exists idempotency_key varchar(255);

-- What the documented table has in another form. On a new table nothing of this changes anything.
update tasks set status     = 'New'                      where status     is null;
update tasks set created_at = (now() at time zone 'utc') where created_at is null;
update tasks set updated_at = created_at                 where updated_at is null;
alter table tasks
    alter column id         type bigint,
    alter column status     set not null,
    alter column created_at set not null,
    alter column updated_at set not null,
    alter column created_at set default (now() at time zone 'utc'),
    alter column updated_at set default (now() at time zone 'utc');
alter sequence if exists tasks_id_seq as bigint;

-- Room in each page for the next version of a row: half of the updates that extend a lease then leave the indexes
-- alone (HOT), and the table stays a third smaller. Those that move the status never can, whatever the room.
alter table tasks set (fillfactor = 70);

-- Rows of an older life with a status of their own stay as they are; new ones can't come.
alter table tasks drop constraint if exists tasks_status_check;
alter table tasks add  constraint tasks_status_check
    check (status in ('New', 'In Progress', 'Completed', 'Failed')) not valid;

-- One index a query. A predicate is a literal in the query too, or it would not be used.
create index        if not exists tasks_claim       on tasks (priority desc, id) where status = 'New' and run_at is null;
create index        if not exists tasks_promote     on tasks (run_at)            where status = 'New' and run_at is not null;
create index        if not exists tasks_list_status on tasks (status, id);       -- LIST_STATUS, RECLAIM, CANCELED
create index        if not exists tasks_delete_old  on tasks (updated_at)        where status in ('Completed', 'Failed');
create unique index if not exists tasks_create      on tasks (idempotency_key)   where idempotency_key is not null;

comment on table tasks is 'Task Manager, schema 1';
