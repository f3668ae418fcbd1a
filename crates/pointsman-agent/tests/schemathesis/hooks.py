"""What the document says of each event of a stream (`x-itemSchema`, which OpenAPI 3.2 has without the x) stands where schemathesis looks for it."""

import schemathesis


@schemathesis.hook
def before_load_schema(context, raw_schema):
    for path in raw_schema["paths"].values():
        for operation in path.values():
            if isinstance(operation, dict):
                for response in operation["responses"].values():
                    for content in response.get("content", {}).values():
                        if "x-itemSchema" in content:
                            content["schema"] = content.pop("x-itemSchema")
