//! The node's log is a ROS node's log: rcl writes the console's lines and the log file and knows the levels (`--log-level`), and
//! every line is on /rosout. What the process says through `tracing` comes here.

use std::ffi::{c_char, c_int, CStr, CString};
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use r2r::rcl_interfaces::msg::Log as LogMsg;
use r2r::{Publisher, QosProfile};
use r2r_rcl::{
    rcl_logging_rosout_enabled, rcutils_log, rcutils_log_location_t,
    rcutils_logging_get_default_logger_level, rcutils_logging_get_logger_effective_level,
    rcutils_logging_initialize, rcutils_logging_logger_is_enabled_for, RCUTILS_LOG_SEVERITY,
};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::messages::time;
use super::outputs::advertise;
use super::{ros, NodeError, NAME};

/// Where the lines of all nodes are, with the QoS that rcl has for it.
pub const ROSOUT: &str = "/rosout";
const ROSOUT_DEPTH: usize = 1000;
const ROSOUT_LIFESPAN: Duration = Duration::from_secs(10);

/// The log of the node, from when its name is known.
pub struct Log(Arc<Mutex<Voice>>);

impl Log {
    /// Takes over what the process says. rcl must have read the command line before, and the node must be there.
    pub fn of_node(node: &mut r2r::Node, name: &str, namespace: &str) -> Result<Self, NodeError> {
        let voice = Arc::new(Mutex::new(Voice {
            logger: c_string(&logger(name, namespace)),
            rosout: rosout(node, name, namespace)?,
            hushed: false,
        }));
        // Only a second node in one process would find the place taken; it would be heard under the first one's name.
        let _ = tracing_subscriber::registry()
            .with(ToRos(voice.clone()))
            .try_init();
        Ok(Self(voice))
    }

    /// Does something that takes the node away; meanwhile nothing is said, and afterwards nothing on /rosout.
    pub fn hush(&self, action: impl FnOnce()) {
        {
            let mut voice = lock(&self.0);
            voice.hushed = true;
            voice.rosout = None;
        }
        action();
        lock(&self.0).hushed = false;
    }
}

/// Says why there is no node, when there is none that could.
pub fn say_without_node(error: &NodeError) {
    // SAFETY: may be called at any time; does nothing if rcl has done it.
    unsafe { rcutils_logging_initialize() };
    Voice {
        logger: c_string(NAME),
        rosout: None,
        hushed: false,
    }
    .say(
        RCUTILS_LOG_SEVERITY::RCUTILS_LOG_SEVERITY_ERROR,
        &Origin::default(),
        &error.to_string(),
    );
}

/// The node's publisher on /rosout, unless the command line wants none.
///
/// Since Jazzy the client library makes it, and the one in use does not. Before, rcl made it with the node, and publishes there
/// what it is given to write.
fn rosout(
    node: &mut r2r::Node,
    name: &str,
    namespace: &str,
) -> Result<Option<Publisher<LogMsg>>, NodeError> {
    // SAFETY: reads a flag that was set when rcl read the command line.
    if !unsafe { rcl_logging_rosout_enabled() } {
        return Ok(None);
    }
    let publishers = ros(
        format!("publishers of {ROSOUT}"),
        node.get_publishers_info_by_topic(ROSOUT, false),
    )?;
    let made_by_rcl = publishers
        .iter()
        .any(|publisher| publisher.node_name == name && publisher.node_namespace == namespace);
    if made_by_rcl {
        return Ok(None);
    }
    let qos = QosProfile::default()
        .keep_last(ROSOUT_DEPTH)
        .transient_local()
        .lifespan(ROSOUT_LIFESPAN);
    Ok(Some(advertise(node, ROSOUT, qos)?))
}

/// rcl's name of a node's logger: namespaces and name with dots between them.
fn logger(name: &str, namespace: &str) -> String {
    let namespace = namespace.trim_matches('/');
    if namespace.is_empty() {
        return name.to_string();
    }
    format!("{}.{name}", namespace.replace('/', "."))
}

/// Speaks to rcl. One at a time: neither its outputs nor its table of levels may be used from two threads at once.
struct Voice {
    logger: CString,
    rosout: Option<Publisher<LogMsg>>,
    hushed: bool,
}

/// Where something was said.
#[derive(Default)]
struct Origin<'a> {
    target: &'a str,
    file: &'a str,
    line: u32,
}

impl Voice {
    /// The logger of a target: the node's for this package, else one of the library's own.
    fn logger(&self, target: &str) -> CString {
        match is_own(target) {
            true => self.logger.clone(),
            false => c_string(&target.replace("::", ".")),
        }
    }

    fn is_enabled(&self, severity: RCUTILS_LOG_SEVERITY, target: &str) -> bool {
        let logger = self.logger(target);
        // SAFETY: the name ends with NUL and outlives the call.
        unsafe { rcutils_logging_logger_is_enabled_for(logger.as_ptr(), severity as c_int) }
    }

    fn say(&self, severity: RCUTILS_LOG_SEVERITY, origin: &Origin<'_>, text: &str) {
        const FORMAT: &CStr = c"%s";
        let logger = self.logger(origin.target);
        let (function, file) = (c_string(origin.target), c_string(origin.file));
        let text = c_string(text);
        let location = rcutils_log_location_t {
            function_name: function.as_ptr(),
            file_name: file.as_ptr(),
            line_number: origin.line as usize,
        };
        // SAFETY: all strings end with NUL and outlive the call; the format takes one of them.
        unsafe {
            rcutils_log(
                &location,
                severity as c_int,
                logger.as_ptr(),
                FORMAT.as_ptr(),
                text.as_ptr().cast::<c_char>(),
            );
        }
    }
}

/// From `tracing` to rcl.
struct ToRos(Arc<Mutex<Voice>>);

impl<S: Subscriber> Layer<S> for ToRos {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.is_event()
            && severity(metadata.level())
                .is_some_and(|severity| lock(&self.0).is_enabled(severity, metadata.target()))
    }

    /// The finer of the node's level and that of everything; they stay as the command line has set them.
    fn max_level_hint(&self) -> Option<LevelFilter> {
        let voice = lock(&self.0);
        // SAFETY: the name ends with NUL and outlives the call.
        let finest = unsafe {
            rcutils_logging_get_logger_effective_level(voice.logger.as_ptr())
                .min(rcutils_logging_get_default_logger_level())
        };
        Some(filter(finest))
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let Some(severity) = severity(metadata.level()) else {
            return;
        };
        let mut line = Line::default();
        event.record(&mut line);
        let origin = Origin {
            target: line.target.as_deref().unwrap_or(metadata.target()),
            file: metadata.file().unwrap_or_default(),
            line: metadata.line().unwrap_or_default(),
        };
        let text = printable(&line.text());
        let rosout = {
            let voice = lock(&self.0);
            if voice.hushed {
                return;
            }
            voice.say(severity, &origin, &text);
            let logger = voice.logger.to_string_lossy().into_owned();
            voice.rosout.clone().map(|publisher| (publisher, logger))
        };
        // Without the lock, as a failure is said too; not on /rosout, since it is a library that says it.
        if let Some((publisher, name)) = rosout.filter(|_| is_own(origin.target)) {
            let _ = publisher.publish(&LogMsg {
                stamp: time(now_ns()),
                level: severity as u8,
                name,
                msg: text,
                file: origin.file.to_string(),
                function: origin.target.to_string(),
                line: origin.line,
            });
        }
    }
}

/// Whether it is this package that speaks.
fn is_own(target: &str) -> bool {
    target.is_empty() || target.starts_with(NAME)
}

/// Nanoseconds of the system's clock, which is the log's also in simulation.
fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |now| i64::try_from(now.as_nanos()).unwrap_or(i64::MAX))
}

/// ROS has no level below DEBUG, so what libraries trace is left out.
fn severity(level: &Level) -> Option<RCUTILS_LOG_SEVERITY> {
    use RCUTILS_LOG_SEVERITY::*;
    match *level {
        Level::ERROR => Some(RCUTILS_LOG_SEVERITY_ERROR),
        Level::WARN => Some(RCUTILS_LOG_SEVERITY_WARN),
        Level::INFO => Some(RCUTILS_LOG_SEVERITY_INFO),
        Level::DEBUG => Some(RCUTILS_LOG_SEVERITY_DEBUG),
        _ => None,
    }
}

/// What passes at a level of rcl; one that cannot be told (below 0) lets everything pass.
fn filter(level: c_int) -> LevelFilter {
    use RCUTILS_LOG_SEVERITY::*;
    match level {
        level if level <= RCUTILS_LOG_SEVERITY_DEBUG as c_int => LevelFilter::DEBUG,
        level if level <= RCUTILS_LOG_SEVERITY_INFO as c_int => LevelFilter::INFO,
        level if level <= RCUTILS_LOG_SEVERITY_WARN as c_int => LevelFilter::WARN,
        level if level <= RCUTILS_LOG_SEVERITY_ERROR as c_int => LevelFilter::ERROR,
        _ => LevelFilter::OFF,
    }
}

/// An event as one line: its message, then its fields.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
    /// Of an event that a library said through `log`.
    target: Option<String>,
}

impl Line {
    fn text(&self) -> String {
        match (self.message.as_str(), self.fields.trim_start()) {
            (message, "") => message.to_string(),
            ("", fields) => fields.to_string(),
            (message, fields) => format!("{message} {fields}"),
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "log.target" => self.target = Some(value.to_string()),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name if name.starts_with("log.") => Ok(()),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// Without what would steer a terminal, and without NUL; line breaks and tabs stay.
fn printable(text: &str) -> String {
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    text.replace(steers, "\u{FFFD}")
}

/// Names and lines hold no NUL; if one does, what is before it stays.
fn c_string(text: &str) -> CString {
    let end = text.find('\0').unwrap_or(text.len());
    CString::new(&text[..end]).unwrap_or_default()
}

fn lock(voice: &Mutex<Voice>) -> MutexGuard<'_, Voice> {
    voice.lock().unwrap_or_else(PoisonError::into_inner)
}
