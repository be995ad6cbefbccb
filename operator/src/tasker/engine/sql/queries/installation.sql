-- name: take_installation
-- Makes an installation the owner unless there is one; the owner.
select id, since from tasker.take_installation(%(id)s);

-- name: adopt_installation
-- Makes an installation the owner, whoever was.
select tasker.adopt_installation(%(id)s);

-- name: installation
-- The owner, if there is one.
select id, since from tasker.installation();
