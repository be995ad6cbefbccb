-- A step of a template is looked up by (template_id, position). An index on (template_id, name) could be taken for that
-- as well, which reads all steps of the template, when the statistics only know small templates.
alter table tasker.template_steps
    drop constraint template_steps_template_id_name_key,
    add constraint template_steps_name_template_id_key unique (name, template_id);
