"""For schemathesis, which `run` tells of this file."""

import schemathesis

BODIES = {
    "extendTask": {},
    "reportProgress": {"progress": 0.5},
    "completeTask": {},
    "failTask": {"error": "why"},
    "releaseTask": {},
}


@schemathesis.hook
def before_load_schema(context, document):
    """Lead it from a claim to what a worker reports about the task.

    In openapi.yaml itself such links would keep openapi-generator from reading it. They are marked as if
    schemathesis had found them, since a link leads nowhere when there was nothing to claim.
    """
    document["paths"]["/tasks/claim"]["post"]["responses"]["200"]["links"] = {
        operation: {
            "operationId": operation,
            "parameters": {"id": "$response.body#/0/id"},
            "requestBody": {"attempt": "$response.body#/0/attempt", **body},
            "x-schemathesis": {"is_inferred": True}}
        for operation, body in BODIES.items()}
    # Made-up texts are hardly ever a schedule or a time zone.
    fields = document["components"]["schemas"]["NewTask"]["properties"]
    fields["repeat"]["oneOf"][1]["enum"] = ["@daily", "30 3 * * mon-fri", "*/5 8-17 1,15 jan *"]
    fields["timezone"]["enum"] = ["UTC", "Europe/Berlin"]
    # A made-up tag is that of no task: nearly all answers would be 412.
    if_match = {"$ref": "#/components/parameters/IfMatch"}
    for path in document["paths"].values():
        for operation in path.values():
            operation["parameters"] = [each for each in operation.get("parameters", []) if each != if_match]
