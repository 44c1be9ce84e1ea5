//! Between the messages of the parameter services and values.

use r2r::rcl_interfaces::msg as ros;
use r2r::ParameterValue;

use crate::cache::parameter::{Kind, Parameter, Settable, Value};

/// A value of ROS; none for the kinds that no parameter of the node has.
pub fn value(given: &ParameterValue) -> Option<Value> {
    match given {
        ParameterValue::Bool(value) => Some(Value::Flag(*value)),
        ParameterValue::Integer(value) => Some(Value::Integer(*value)),
        ParameterValue::Double(value) => Some(Value::Number(*value)),
        ParameterValue::String(value) => Some(Value::Text(value.clone())),
        ParameterValue::DoubleArray(values) => Some(Value::Numbers(values.clone())),
        // YAML writes 1.0 as 1 as well.
        ParameterValue::IntegerArray(values) => {
            let numbers = values.iter().map(|&value| value as f64);
            Some(Value::Numbers(numbers.collect()))
        }
        ParameterValue::StringArray(values) => Some(Value::Texts(values.clone())),
        _ => None,
    }
}

/// Whether this is an empty list: rcl says of one that it is not set, and `ros2 param` that it is one of booleans.
pub fn is_empty_list(given: &ParameterValue) -> bool {
    match given {
        ParameterValue::NotSet => true,
        ParameterValue::BoolArray(values) => values.is_empty(),
        ParameterValue::ByteArray(values) => values.is_empty(),
        _ => false,
    }
}

/// What a value of such a kind is called.
pub fn kind(given: &ParameterValue) -> String {
    match given {
        ParameterValue::NotSet => "not set".to_string(),
        other => format!("of type {}", other.type_name()),
    }
}

const BOOL: u8 = ros::ParameterType::PARAMETER_BOOL as u8;
const INTEGER: u8 = ros::ParameterType::PARAMETER_INTEGER as u8;
const DOUBLE: u8 = ros::ParameterType::PARAMETER_DOUBLE as u8;
const STRING: u8 = ros::ParameterType::PARAMETER_STRING as u8;
const INTEGERS: u8 = ros::ParameterType::PARAMETER_INTEGER_ARRAY as u8;
const DOUBLES: u8 = ros::ParameterType::PARAMETER_DOUBLE_ARRAY as u8;
const STRINGS: u8 = ros::ParameterType::PARAMETER_STRING_ARRAY as u8;

/// The value of a message as ROS has it.
pub fn from_message(message: &ros::ParameterValue) -> ParameterValue {
    use ros::ParameterType as Type;
    match message.type_ {
        BOOL => ParameterValue::Bool(message.bool_value),
        INTEGER => ParameterValue::Integer(message.integer_value),
        DOUBLE => ParameterValue::Double(message.double_value),
        STRING => ParameterValue::String(message.string_value.clone()),
        INTEGERS => ParameterValue::IntegerArray(message.integer_array_value.clone()),
        DOUBLES => ParameterValue::DoubleArray(message.double_array_value.clone()),
        STRINGS => ParameterValue::StringArray(message.string_array_value.clone()),
        list if list == Type::PARAMETER_BYTE_ARRAY as u8 => {
            ParameterValue::ByteArray(message.byte_array_value.clone())
        }
        list if list == Type::PARAMETER_BOOL_ARRAY as u8 => {
            ParameterValue::BoolArray(message.bool_array_value.clone())
        }
        _ => ParameterValue::NotSet,
    }
}

/// A value as a message; none: not set.
pub fn to_message(value: Option<&Value>) -> ros::ParameterValue {
    let empty = ros::ParameterValue::default();
    match value {
        None => empty,
        Some(Value::Flag(value)) => ros::ParameterValue {
            type_: BOOL,
            bool_value: *value,
            ..empty
        },
        Some(Value::Integer(value)) => ros::ParameterValue {
            type_: INTEGER,
            integer_value: *value,
            ..empty
        },
        Some(Value::Number(value)) => ros::ParameterValue {
            type_: DOUBLE,
            double_value: *value,
            ..empty
        },
        Some(Value::Text(value)) => ros::ParameterValue {
            type_: STRING,
            string_value: value.clone(),
            ..empty
        },
        Some(Value::Numbers(values)) => ros::ParameterValue {
            type_: DOUBLES,
            double_array_value: values.clone(),
            ..empty
        },
        Some(Value::Texts(values)) => ros::ParameterValue {
            type_: STRINGS,
            string_array_value: values.clone(),
            ..empty
        },
    }
}

/// The type of a parameter's values.
pub fn type_of(kind: &Kind) -> u8 {
    match kind {
        Kind::Flag => BOOL,
        Kind::Text | Kind::Choice(_) => STRING,
        Kind::Integer(_) => INTEGER,
        Kind::Number(_) => DOUBLE,
        Kind::Numbers(_) => DOUBLES,
        Kind::Texts => STRINGS,
    }
}

/// A parameter as `ros2 param describe` and graphical tools show it.
pub fn descriptor(parameter: &Parameter) -> ros::ParameterDescriptor {
    let mut description = parameter.effect();
    if !parameter.unit.is_empty() {
        description = format!("{description} Unit: {}.", parameter.unit);
    }
    let mut described = ros::ParameterDescriptor {
        name: parameter.name.to_string(),
        type_: type_of(&parameter.kind),
        description,
        additional_constraints: format!("set {}", parameter.settable.about()),
        read_only: parameter.settable == Settable::Start,
        ..Default::default()
    };
    match &parameter.kind {
        Kind::Flag | Kind::Text | Kind::Texts => {}
        Kind::Choice(_) => {
            described.additional_constraints =
                format!("{}; {}", parameter.kind, described.additional_constraints);
        }
        Kind::Integer(range) => described.integer_range.push(ros::IntegerRange {
            from_value: *range.start(),
            to_value: *range.end(),
            step: 1,
        }),
        Kind::Number(range) | Kind::Numbers(range) => {
            described
                .floating_point_range
                .push(ros::FloatingPointRange {
                    from_value: *range.start(),
                    to_value: *range.end(),
                    step: 0.0,
                })
        }
    }
    described
}
