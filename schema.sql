-- Task Manager's one table, for PostgreSQL 12 or newer. A task is one row, and the row is the truth.
--
-- This file may be run at any time, by PostgreSQL's init, by psql, or by the application at its start (which
-- skips it when the comment in the last line is already on the table: its number grows with every change). It
-- creates the table in an empty database, and brings one of the four documented columns, or an older one of
-- ours, up to date in place, rows and all.

create table if not exists tasks (
    id         bigserial   primary key,
    status     varchar(20) not null default 'New',
    created_at timestamp   not null default (now() at time zone 'utc'),   -- all times are UTC
    updated_at timestamp   not null default (now() at time zone 'utc')    -- when the status last changed
);

-- Columns of an older table that have another type than ours; a time with a zone becomes one in UTC. Only
-- those are altered: where a view uses a column, its type can't even be set to what it is. What is added from
-- now on needs no entry.
do $$
declare
    wrong record;
begin
    perform set_config('timezone', 'UTC', true);
    for wrong in
        select attname, type
        from   (values ('bigint', 'id'), ('varchar', 'status'), ('smallint', 'priority'),
                       ('timestamp', 'created_at updated_at run_at lease_until ready_at'),
                       ('text', 'error idempotency_key fingerprint worker'),
                       ('int', 'attempt uncounted max_attempts'), ('double precision', 'timeout progress'),
                       ('json', 'payload result'), ('boolean', 'canceled alone')) as wanted (type, names)
        join   pg_attribute on attname = any(string_to_array(names, ' '))
        where  attrelid = to_regclass('tasks') and atttypid <> to_regtype(type) loop
        execute format('alter table tasks alter column %I type %s', wrong.attname, wrong.type);
    end loop;
end $$;

-- The columns that real work needs. A row inserted with none of them is a task like any other.
alter table tasks
    add column if not exists payload         json,
    add column if not exists result          json,
    add column if not exists error           text,                          -- of the last attempt
    add column if not exists priority        smallint not null default 0,   -- higher is sooner
    add column if not exists run_at          timestamp,                     -- null: ready now
    -- the fencing token: it grows with each claim, and no number is used again
    add column if not exists attempt         int      not null default 0,
    -- attempts that do not count towards max_attempts: released, or before a retry by hand
    add column if not exists uncounted       int      not null default 0
                                             check (uncounted between 0 and attempt),
    add column if not exists max_attempts    int      check (max_attempts > 0),         -- null: the default
    add column if not exists timeout         double precision                           -- null: the default
                                             check (timeout > 0 and timeout < 1e99),
    add column if not exists lease_until     timestamp,                     -- null: no worker holds it
    add column if not exists canceled        boolean  not null default false,   -- cancellation was requested
    add column if not exists progress        double precision check (progress between 0 and 1),
    add column if not exists idempotency_key text,
    add column if not exists fingerprint     text,                          -- a hash of the key's request
    add column if not exists ready_at        timestamp,                     -- null: ready since its creation
    -- of the last attempt: host:pid:random, or over HTTP @NAME, or null
    add column if not exists worker          text,
    -- true: the attempt runs, or the next one must run, with nothing beside it. RECLAIM fails only tasks
    -- of which this is true.
    add column if not exists alone           boolean  not null default false,
    -- bytes of payload and result, so that no page unpacks what it does not show
    add column if not exists size            int      generated always as (
                                                 coalesce(octet_length(cast(payload as text)), 0)
                                                 + coalesce(octet_length(cast(result as text)), 0)) stored,
    add column if not exists kind            text     not null default 'default',
    add column if not exists repeat          json,      -- seconds, or a cron expression
    add column if not exists timezone        text,      -- of a cron expression; null: UTC
    -- when the last attempt began; null: no attempt yet, or the last one is in the history
    add column if not exists started_at      timestamp,
    -- the attempts before the last one: a JSON object per line, the newest 8,000 characters
    add column if not exists history         text,
    add column if not exists planned_at      timestamp, -- when the first run of a repeating task was due
    -- how the last attempt ended, released ones apart (openapi.yaml: Attempt); null: none yet
    add column if not exists outcome         text,
    -- attempts before this run of a repeating task, which tell the runs apart
    add column if not exists earlier         int      not null default 0;

-- What an older version has told by other columns, or not at all.
do $$ begin
    if obj_description(to_regclass('tasks'), 'pg_class') ~ 'schema [1-6]$' then
        update tasks
        set    earlier = case when repeat is null then 0 else uncounted end,
               outcome = case
                         when error like 'the worker died or was cut off%' then 'reclaimed'
                         when error like 'timed out after %' then 'timed_out'
                         when status = 'Failed' and not canceled then 'failed'
                         end
        where  status in ('New', 'In Progress', 'Completed', 'Failed')
               and (repeat is not null or error ~ '^(the worker died or was cut off|timed out after )');
    end if;
end $$;

-- Columns that the documented table has in another form. It changes nothing on a new table.
alter table tasks drop constraint if exists tasks_status_check;     -- it could refuse an older row; see below
update tasks set status     = 'New'                      where status     is null;
update tasks set created_at = (now() at time zone 'utc') where created_at is null;
update tasks set updated_at = created_at                 where updated_at is null;
alter table tasks
    alter column status     set not null,
    alter column created_at set not null,
    alter column updated_at set not null,
    alter column created_at set default (now() at time zone 'utc'),
    alter column updated_at set default (now() at time zone 'utc');
alter sequence if exists tasks_id_seq as bigint;

-- Room in each page for the next version of a row: half of the updates that extend a lease then change no
-- index (HOT), and the table stays a third smaller. An update of the status always changes one.
alter table tasks set (fillfactor = 70);

-- The limits of what plain SQL may write: no row may be too large to be read, or make a statement fail that
-- is about many rows. PostgreSQL reads, plans and runs every check in every statement that writes, so all
-- times share one, and none takes a regular expression or a list where it can do without: a claim and its end
-- take 1.12 times as long with the checks as without any, and took 1.29.
do $$
declare
    moment text;
begin
    foreach moment in array array[
            'created_at', 'updated_at', 'run_at', 'lease_until', 'ready_at', 'started_at', 'planned_at'] loop
        execute format('update tasks set %1$I = greatest(least(%1$I, ''9999-12-31 23:59:59''), ''0001-01-01'')
                        where %1$I not between ''0001-01-01'' and ''9999-12-31 23:59:59.999999''', moment);
        execute format('alter table tasks drop constraint if exists tasks_%1$s_check', moment);
    end loop;
end $$;
alter table tasks drop constraint if exists tasks_times_check, add constraint tasks_times_check check (
    least(created_at, updated_at, run_at, lease_until, ready_at, started_at, planned_at) >= '0001-01-01'
    and greatest(created_at, updated_at, run_at, lease_until, ready_at, started_at, planned_at)
        <= '9999-12-31 23:59:59.999999');

-- The same, where an older row can't be mended: then it stays, and new ones are not checked.
do $$
declare
    rule text[];
begin
    foreach rule slice 1 in array array[
        ['id',              'id between 1 and 9007199254740991'],   -- which JSON's numbers hold exactly
        -- 32 MiB, and a result
        ['size',            'size <= 33554432 or status = ''Completed'' and size <= 67108864'],
        ['error',           'octet_length(error) <= 1048576'],
        ['history',         'octet_length(history) <= 1048576'],
        -- a counted repetition, {0,62}, would take nine times as long
        ['kind',            'kind = ''default'' or kind ~ ''^[a-z0-9][a-z0-9_-]*$'' and length(kind) <= 63'],
        ['repeat',          'octet_length(cast(repeat as text)) <= 1000'],
        ['idempotency_key', 'octet_length(idempotency_key) <= 2000']] loop
        execute format('alter table tasks drop constraint if exists tasks_%s_check', rule[1]);
        begin
            execute format('alter table tasks add constraint tasks_%s_check check (%s)', rule[1], rule[2]);
        exception when check_violation then
            raise warning 'tasks has rows that break the rule %, which is left out', rule[2];
        end;
    end loop;
end $$;

-- Rows of an older program with a status of their own stay as they are; new ones can't come.
alter table tasks add constraint tasks_status_check
    check (status = any ('{New,In Progress,Completed,Failed}')) not valid;  -- a constant, as in (...) is not

-- One index a query. A predicate is a literal in the query too, or it would not be used. An index that is
-- changed gets another name, and the old one is dropped here.
drop index if exists tasks_claim, tasks_delete_old, tasks_run_alone;
create index        if not exists tasks_claim_kind  on tasks (kind, (0 - priority), id)     -- and READY_KINDS
    where status = 'New' and run_at is null;
create index        if not exists tasks_promote     on tasks (run_at)
    where status = 'New' and run_at is not null;
create index        if not exists tasks_repeat      on tasks (run_at, id)   -- and UNSCHEDULED
    where repeat is not null and not canceled and status in ('Completed', 'Failed');
create index        if not exists tasks_list_status on tasks (status, id);  -- and RECLAIM, HELD_BY
create index        if not exists tasks_finished    on tasks (status, updated_at)   -- DELETE_OLD, FINISHED
    where status in ('Completed', 'Failed');
create unique index if not exists tasks_create      on tasks (idempotency_key)
    where idempotency_key is not null;

comment on table tasks is 'Task Manager, schema 7';
