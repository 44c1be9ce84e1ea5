import sys; sys.path.insert(0,'/tmp/time')
from res import *
import subprocess
s,h=hunks('src/stream/session/ask.rs'); assert len(h)==1, len(h)
resolve('src/stream/session/ask.rs',['        self.check_age(instruction)?;\n'+h[0][1]])
s=open('src/stream/session/ask.rs').read()
s=s.replace('.and_then(|now_ns| self.memory.age_ns(now_ns))','.and_then(|now_ns| self.memory().age_ns(now_ns))')
open('src/stream/session/ask.rs','w').write(s)
subprocess.run(['git','checkout','--theirs','src/stream/session/mod.rs'],check=True)
s=open('src/stream/session/mod.rs').read()
s=s.replace('use super::gate::GateConfig;\n','use super::complaints::Complaints;\nuse super::gate::GateConfig;\n',1)
s=s.replace('pub use beginning::PromptCheck;','pub use ask::AskError;\npub use beginning::PromptCheck;',1)
import re
assert '    time_jumps: u64,\n' in s
s=s.replace('    time_jumps: u64,\n','    complaints: Complaints,\n',1)
assert 'time_jumps: 0,' in s
s=s.replace('time_jumps: 0,','complaints: Complaints::default(),',1)
a=s.index('    /// Times that the stamps have jumped since the start.'); b=s.index('    /// The state of the stream.')
s=s[:a]+s[b:]
open('src/stream/session/mod.rs','w').write(s)
p='src/stream/session/frames.rs'
s=open(p).read()
s=s.replace('use crate::stream::gate::{Arrival, Skip};','use crate::stream::gate::Skip;')
a=s.index('    /// Takes a frame into the memory: vision tower'); b=s.index('    fn take_frame(\n')
s=s[:a]+'''    /// Takes frames in lock-step, as they arrive: one that is late or of another clock is refused, one after a jump of the stamps
    /// begins an epoch, all others are taken as by [`Self::take_frame`].
    pub fn push_frame(&mut self, image: &CameraImage) -> Result<Taken, PushError> {
        image.check()?;
        let clock = &mut self.state.stream.clock;
        let arrival = clock.arrive(image.stamp_ns, image.arrival_ns);
        self.take_frame(image, arrival.check(image.stamp_ns)?)
    }

    /// Takes a frame whose time is in order into the memory: vision tower, connector, one chunk through the decoder. `jumped`: an
    /// epoch begins with it, since the stamps jumped from there, nanoseconds.
    ///
    /// One that fails has arrived, and nothing more: the memory is what it was.
    pub fn take_frame(
        &mut self,
        image: &CameraImage,
        jumped: Option<i64>,
    ) -> Result<Taken, PushError> {
        let started = Instant::now();
        if let Some(from_ns) = jumped {
            self.begin_epoch(from_ns, image.stamp_ns)?;
        }
        if !self.state.stream.gate.due(image.stamp_ns) {
            return Ok(Taken::Skipped(Skip::Rate));
        }
        let picture = image.picture()?;
        Ok(self.attempt(|session| session.feed(image, &picture, started))?)
    }

'''+s[b:].replace('    fn take_frame(\n','    fn feed(\n',1)
a=s.index('    /// Refuses a frame that was overtaken; starts')
s=s[:a]+'''    /// The stamps have jumped; what is remembered stays as it is, or is forgotten.
    fn begin_epoch(&mut self, from_ns: i64, to_ns: i64) -> Result<(), ModelError> {
        let reset = self.config.gate.reset_on_time_jump;
        if let Some(more) = self.complaints.due("time_jump", Instant::now()) {
            tracing::warn!(
                from_s = from_ns as f64 * 1e-9,
                to_s = to_ns as f64 * 1e-9,
                memory = if reset { "reset" } else { "kept" },
                "time of the images jumped{more}"
            );
        }
        let stream = &mut self.state.stream;
        stream.gate.begin_epoch();
        stream.memory.end_epoch();
        if reset {
            // The stream begins anew, its clock does not.
            let clock = stream.clock.clone();
            self.reset()?;
            self.state.stream.clock = clock;
        }
        Ok(())
    }
}
'''
s=s.replace('''        if stream.gate.unchanged(&prepared) {
''','''        if stream.gate.unchanged(&prepared) {
            stream.memory.confirm(image);
''',1)
open(p,'w').write(s)
p='src/stream/session/state.rs'
sub(p,('use crate::stream::gate::FrameGate;','use crate::stream::clock::StreamClock;\nuse crate::stream::gate::FrameGate;'),
('    pub gate: FrameGate,\n','    /// Of the frames that come in lock-step.\n    pub clock: StreamClock,\n    pub gate: FrameGate,\n'),
('            gate: FrameGate::new(config.gate),\n','            clock: StreamClock::new(config.gate.time_jump_threshold),\n            gate: FrameGate::new(config.gate),\n'))
